"""``python -m freezealign``: the command line."""

from freezealign.cli import app

if __name__ == "__main__":
    app()
