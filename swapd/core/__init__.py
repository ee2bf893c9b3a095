"""What decides: pure, without a clock, a log or an await."""
