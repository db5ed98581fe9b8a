package eval

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"go.starlark.net/resolve"
	"go.starlark.net/starlark"
	"go.starlark.net/syntax"
)

// Error is an error with its place in a file.
type Error struct {
	File      string
	Line, Col int
	Message   string
	Trace     []Frame // calls that led there, outermost first; the last is the place itself or near it
	Limit     bool    // a bound of the evaluation ended it
	cause     error
}

// Frame is one call of a trace.
type Frame struct {
	Function  string
	File      string
	Line, Col int
}

func (e *Error) Error() string {
	if e.File == "" {
		return e.Message
	}
	return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Col, e.Message)
}

// Unwrap returns what was wrong in Go's terms, if that is known.
func (e *Error) Unwrap() error { return e.cause }

// Is makes errors.Is(err, ErrLimit) work.
func (e *Error) Is(target error) bool { return target == ErrLimit && e.Limit }

// Detail is the error followed by its trace, when there is more to it than the place.
func (e *Error) Detail() string {
	var b strings.Builder
	b.WriteString(e.Error())
	if len(e.Trace) < 2 {
		return b.String()
	}
	for i := len(e.Trace) - 1; i >= 0; i-- {
		f := e.Trace[i]
		fmt.Fprintf(&b, "\n  %s:%d:%d: in %s", f.File, f.Line, f.Col, f.Function)
	}
	return b.String()
}

// locate turns any error of an evaluation into an *Error, if there is a place to tell.
func (e *Evaluation) locate(err error) error {
	var done *Error
	if errors.As(err, &done) {
		return done
	}
	var parse syntax.Error
	if errors.As(err, &parse) {
		return at(parse.Pos, parse.Msg)
	}
	var names resolve.ErrorList
	if errors.As(err, &names) {
		return at(names[0].Pos, names[0].Msg)
	}
	var inner *starlark.EvalError
	for cause := err; errors.As(cause, &inner); {
		cause = inner.Unwrap()
	}
	if inner == nil {
		return err
	}
	return e.placed(err, inner)
}

func at(p syntax.Position, message string) *Error {
	return &Error{File: p.Filename(), Line: int(p.Line), Col: int(p.Col), Message: message}
}

// placed makes an error of the innermost error of the interpreter. What was added around it on its way out through
// Go, such as which service was folded, stays in front of the message.
func (e *Evaluation) placed(outer error, inner *starlark.EvalError) *Error {
	var trace []Frame
	for _, f := range inner.CallStack {
		if f.Pos.Filename() == builtinFile {
			continue
		}
		trace = append(trace, Frame{f.Name, f.Pos.Filename(), int(f.Pos.Line), int(f.Pos.Col)})
	}
	out := &Error{Message: inner.Msg, Trace: trace, cause: inner.Unwrap()}
	if f := e.failed.Load(); f != nil {
		out.Message, out.Limit, out.cause = f.err.Error(), errors.Is(f.err, ErrLimit), f.err
	}
	out.Message = prefix(outer, inner) + out.Message + e.hidden(inner.Msg)
	if len(trace) == 0 {
		return out
	}
	out.point(trace[len(trace)-1])
	var arg *argError
	if errors.As(inner, &arg) {
		p := e.argument(inner.CallStack, arg)
		out.File, out.Line, out.Col = p.Filename(), int(p.Line), int(p.Col)
	}
	out.preferUser(trace)
	return out
}

var beforeAssignment = regexp.MustCompile(`^global variable (\w+) referenced before assignment$`)

// hidden explains the error of a file that assigns a name of the language which it also wants to use.
func (e *Evaluation) hidden(message string) string {
	m := beforeAssignment.FindStringSubmatch(message)
	if m == nil || !e.names.Has(m[1]) {
		return ""
	}
	return fmt.Sprintf(" (%s is a name of the language, which this file hides by assigning to it; choose another name)", m[1])
}

const builtinFile = "<builtin>"

// prefix returns what outer says before it comes to inner's message.
func prefix(outer error, inner *starlark.EvalError) string {
	if _, direct := outer.(*starlark.EvalError); direct {
		return ""
	}
	text := outer.Error()
	if i := strings.Index(text, inner.Msg); i > 0 {
		return text[:i]
	}
	return ""
}

func (e *Error) point(f Frame) { e.File, e.Line, e.Col = f.File, f.Line, f.Col }

// preferUser moves the place of an error inside the library to the user's call that led to it.
func (e *Error) preferUser(trace []Frame) {
	if !strings.HasPrefix(e.File, libraryPrefix) {
		return
	}
	for i := len(trace) - 1; i >= 0; i-- {
		if !strings.HasPrefix(trace[i].File, libraryPrefix) {
			e.point(trace[i])
			return
		}
	}
}

// argument returns where the argument that an error is about is written. The innermost frame is the
// built-in's own; the one around it stands at the opening parenthesis of the call.
func (e *Evaluation) argument(stack starlark.CallStack, arg *argError) syntax.Position {
	last := len(stack) - 1
	for last > 0 && stack[last].Pos.Filename() == builtinFile {
		last--
	}
	pos := stack[last].Pos
	m := e.shown[pos.Filename()]
	if m == nil || m.syntax == nil {
		return pos
	}
	call := callAt(m.syntax, pos)
	if call == nil {
		return pos
	}
	return arg.position(call)
}

// callAt finds the call whose parenthesis opens at pos.
func callAt(f *syntax.File, pos syntax.Position) *syntax.CallExpr {
	var found *syntax.CallExpr
	syntax.Walk(f, func(n syntax.Node) bool {
		if c, ok := n.(*syntax.CallExpr); ok && c.Lparen == pos {
			found = c
		}
		return found == nil
	})
	return found
}

// position finds the argument in the text of the call.
func (a *argError) position(call *syntax.CallExpr) syntax.Position {
	start, _ := call.Span()
	if a.whole {
		return start
	}
	slot := a.slot
	if a.keyword == "" {
		slot = a.index + 1
	}
	for _, x := range call.Args {
		if name, value := keyword(x); name != "" {
			if name == a.keyword {
				return element(x, value, a.path)
			}
			continue
		}
		if slot--; slot == 0 {
			return element(x, x, a.path)
		}
	}
	return start // hidden in *args or **kwargs, or left out
}

// keyword splits "name = value".
func keyword(x syntax.Expr) (string, syntax.Expr) {
	b, ok := x.(*syntax.BinaryExpr)
	if !ok || b.Op != syntax.EQ {
		return "", x
	}
	return b.X.(*syntax.Ident).Name, b.Y
}

// element follows a path into literal lists and dicts as far as it goes; without a path the place is the whole argument's.
func element(arg, value syntax.Expr, path []int) syntax.Position {
	place := arg
	for _, i := range path {
		switch v := value.(type) {
		case *syntax.ListExpr:
			if i >= len(v.List) {
				return start(place)
			}
			value = v.List[i]
			place = value
		case *syntax.DictExpr:
			if i >= len(v.List) {
				return start(place)
			}
			entry := v.List[i].(*syntax.DictEntry)
			place, value = entry, entry.Value
		default:
			return start(place)
		}
	}
	return start(place)
}

func start(n syntax.Node) syntax.Position {
	p, _ := n.Span()
	return p
}

// UserPlace is where the user's files called what runs now: the innermost frame outside the library,
// or the innermost frame when there is none.
func UserPlace(t *starlark.Thread) syntax.Position {
	var first syntax.Position
	for i := range t.CallStackDepth() {
		p := t.CallFrame(i).Pos
		if p.Filename() == builtinFile {
			continue
		}
		if !strings.HasPrefix(p.Filename(), libraryPrefix) {
			return p
		}
		if !first.IsValid() {
			first = p
		}
	}
	if origin, ok := t.Local(originKey).(syntax.Position); ok {
		return origin
	}
	return first
}

const originKey = "cairn origin"

// OnBehalf runs f for something that was written at place: records that f makes inside the library count
// as made there, and so do errors inside the library. The error of f gets its place.
func OnBehalf(t *starlark.Thread, place syntax.Position, f func() error) error {
	before := t.Local(originKey)
	t.SetLocal(originKey, place)
	defer t.SetLocal(originKey, before)
	err := f()
	if err == nil {
		return nil
	}
	err = of(t).locate(err)
	var placed *Error
	if errors.As(err, &placed) && strings.HasPrefix(placed.File, libraryPrefix) && place.IsValid() {
		placed.File, placed.Line, placed.Col = place.Filename(), int(place.Line), int(place.Col)
	}
	return err
}

// Prefix puts words in front of the message of an error that has a place, or of any other.
func Prefix(err error, words string) error {
	var placed *Error
	if !errors.As(err, &placed) {
		return fmt.Errorf("%s%w", words, err)
	}
	if !strings.HasPrefix(placed.Message, words) {
		placed.Message = words + placed.Message
	}
	return placed
}

// callPlace is where the call of the running built-in is written.
func callPlace(t *starlark.Thread) syntax.Position { return t.CallFrame(1).Pos }
