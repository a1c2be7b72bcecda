"""``python -m book.tools``: stage the pages, build the book."""

from book.tools.build import app

if __name__ == "__main__":
    app(prog_name="python -m book.tools")
