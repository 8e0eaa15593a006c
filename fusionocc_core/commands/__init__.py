"""Subcommands of `fusionocc`, one module each: add_parser(subparsers) sets run=function(args) -> exit code."""
