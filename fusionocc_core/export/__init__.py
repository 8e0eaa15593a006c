"""Networks as fixed graphs for other runtimes: the graphs, the artefacts that hold them, and what runs them."""
