"""Models: loading real ones, building the tiny one."""
