"""What HTML pages and plots share: templates, and PNG files of matplotlib."""
