package activate

// Decoders that have no public name, for their tests.
var (
	ParseListeners = parseListeners
	ParseAccounts  = parseAccounts
	ParseState     = parseState
	Settings       = settings
	SplitCommand   = splitCommand
	ExecProgram    = execProgram
	EncodeState    = (*State).encode
	RecoverText    = recoverText
)

// Where returns port and address of a parsed listener.
func (l listener) Where() (int, string) { return l.port.Number, l.port.Address }
