"""What a ladder shows: tables, statements, curves, the same question through all arms."""
