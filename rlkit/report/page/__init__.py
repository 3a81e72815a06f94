"""The page of a run: what `rlkit watch` serves and report.html holds. static/ is the page itself, which only shows text as text."""
