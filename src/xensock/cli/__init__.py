"""What people touch: the `xensock` command and its subcommands."""
