package disk

// BreakDatabase makes every later commit of a store fail.
func BreakDatabase(s *Store) { s.db.Close() }
