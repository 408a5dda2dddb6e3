"""The whole conversation of a session as a document: JSON for programs, Markdown and HTML for readers. No I/O."""
