"""`python -m greenjax COMMAND ...` runs `greenjax COMMAND ...`."""

from greenjax.commands import main

if __name__ == "__main__":
    main()
