"""What a placement uses: weights, context, compute buffers and what lies beyond the buffers. Pure."""
