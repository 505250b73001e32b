"""Drawing for every room that writes HTML pages: page (templates), style (figures), strips (clips as images)."""
