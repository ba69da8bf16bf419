"""Active calls, each with a mailbox between its reader and its writer. Any call can be stopped."""
