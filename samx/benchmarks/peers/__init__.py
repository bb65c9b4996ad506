"""Other people's exports of the same decoder, built from their own code, to be measured beside ours."""
