"""Active calls: each has a mailbox between its reader and its writer, and can be stopped."""
