"""What HTML pages and plots share: templates, thumbnails, and PNG files of matplotlib."""
