"""What a person looks at: states, domains, selections, controls, report, explorer."""
