"""All that is known of Ray and is no public API of Ray, and how the cluster is reached."""
