"""The ideas behind the pipeline; see the README for the layout. Imports point down only."""
