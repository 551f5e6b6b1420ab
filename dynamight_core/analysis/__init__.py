"""What a person looks at: principal motions, errors, verdict, states, selections, report."""
