"""From settings to arms and a report: choosing, measuring, comparing."""
