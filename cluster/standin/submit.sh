#!/usr/bin/env bash
# Stand-in for `sbatch`: submit.sh RULE THREADS GPUS JOBSCRIPT. Writes down what was asked for, starts the job in the
# background, prints its number, as sbatch does.
set -euo pipefail
log="${STANDIN_LOG:-.snakemake/standin.log}"
mkdir -p "$(dirname "$log")"
echo "rule=$1 threads=$2 gpus=$3" >> "$log"
${STANDIN_SHELL:-sh} "$4" > "$log.$1.out" 2>&1 &
echo $!
