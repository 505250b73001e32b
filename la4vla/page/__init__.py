"""Drawing for every room that writes an HTML page: page (templates), style (figures), strips (clips as pictures)."""
