"""Parts that all commands share: flags, error messages, progress, append-only logs, locks, files written whole."""
