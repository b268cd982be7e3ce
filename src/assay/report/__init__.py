"""Reports: figures, HTML and Markdown pages, terminal tables. Nothing here measures or decides."""
