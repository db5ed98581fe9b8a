package disk

// BreakDatabase makes every later commit of a store fail.
func BreakDatabase(s *Store) { s.db.Close() }

// NoExchange makes a store replace trees as on a file system that cannot exchange names.
func NoExchange(s *Store) { s.noExchange = true }
