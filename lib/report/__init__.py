"""Tables and figures from files that the other stages wrote. Nothing here computes a result."""
