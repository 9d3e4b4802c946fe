"""Methods compared on an equal footing: what is asked, what is run, what came out."""
