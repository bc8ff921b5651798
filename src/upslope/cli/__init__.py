"""The `upslope` command: one small file per subcommand."""
