"""How far motion can be trusted: errors, detection limit, verdict, bias, and the summary that states them."""
