"""From an AnnData to minibatches: what is checked, registered, cast, compared and handed out."""
