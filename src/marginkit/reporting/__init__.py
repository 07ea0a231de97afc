"""Pages: plain values in, one self-contained HTML file and its Markdown out; no torch."""
