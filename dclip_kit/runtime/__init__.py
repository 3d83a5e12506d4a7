"""What everything stands on: files, processes, memory and threads."""
