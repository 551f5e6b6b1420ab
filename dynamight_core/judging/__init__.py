"""Whether motion can be trusted: errors, detection limit, verdict, model bias, and their summary."""
