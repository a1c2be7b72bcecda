"""The study on real hearts: its plan, the queue that carries it out, and the answers of its records."""
