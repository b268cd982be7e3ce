"""One file per page. Every module here is imported when pages are first asked for, and registers itself."""
