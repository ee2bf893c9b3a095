"""Where models come from, a store each: what it holds, without a look into the files."""
