"""`python -m worker`: the program of `worker.command`."""

from models.allocator import restart

if __name__ == "__main__":
    restart()
    from worker.command import cli

    cli()
