package ssh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"
)

// Command is a program to run on the host.
type Command struct {
	Argv           []string // quoted for the remote shell, which gets no say in it
	Stdin          io.Reader
	Stdout, Stderr io.Writer // without a Stderr, what the command says there is in the error
}

// ExitError is a command that ran and did not end well.
type ExitError struct {
	Command string
	Status  int    // exit status, when Signal is empty
	Signal  string // "KILL"
	Stderr  string // its last words, when nobody else took them
}

func (e *ExitError) Error() string {
	how := fmt.Sprintf("exited with status %d", e.Status)
	if e.Signal != "" {
		how = "killed by signal " + e.Signal
	}
	s := fmt.Sprintf("run %s: %s", e.Command, how)
	if e.Stderr != "" {
		s += ": " + e.Stderr
	}
	return s
}

// Run runs a command to its end.
func (c *Conn) Run(ctx context.Context, cmd Command) error {
	s, err := c.Start(ctx, cmd)
	if err != nil {
		return err
	}
	return s.Wait()
}

// Session is a command that runs.
type Session struct {
	conn    *Conn
	ctx     context.Context
	name    string
	session *ssh.Session
	stop    func() bool
	said    *tail
	in      io.WriteCloser
	out     io.Reader
	wait    func() error
}

// Start starts a command. The session ends with ctx.
func (c *Conn) Start(ctx context.Context, cmd Command) (*Session, error) {
	return c.open(ctx, cmd, false)
}

// Stream starts a command whose standard input and output are the session's Write and Read.
func (c *Conn) Stream(ctx context.Context, argv ...string) (*Session, error) {
	return c.open(ctx, Command{Argv: argv}, true)
}

func (c *Conn) open(ctx context.Context, cmd Command, piped bool) (*Session, error) {
	session, err := c.client.NewSession()
	if err != nil {
		return nil, c.lost(err)
	}
	s := &Session{conn: c, ctx: ctx, name: cmd.Argv[0], session: session, said: new(tail)}
	s.wait = sync.OnceValue(s.await)
	session.Stdin, session.Stdout, session.Stderr = cmd.Stdin, cmd.Stdout, cmd.Stderr
	if cmd.Stderr == nil {
		session.Stderr = s.said
	}
	if piped {
		if s.in, err = session.StdinPipe(); err == nil {
			s.out, err = session.StdoutPipe()
		}
	}
	if err == nil {
		err = session.Start(Quote(cmd.Argv))
	}
	if err != nil {
		session.Close()
		return nil, c.lost(err)
	}
	s.stop = context.AfterFunc(ctx, func() {
		session.Signal(ssh.SIGTERM)
		session.Close()
	})
	return s, nil
}

// Read reads the command's standard output.
func (s *Session) Read(p []byte) (int, error) { return s.out.Read(p) }

// Write writes to the command's standard input.
func (s *Session) Write(p []byte) (int, error) { return s.in.Write(p) }

// CloseWrite ends the command's standard input.
func (s *Session) CloseWrite() error { return s.in.Close() }

// Wait waits for the command's end and says how it ended. It may be called again.
func (s *Session) Wait() error { return s.wait() }

func (s *Session) await() error {
	err := s.session.Wait()
	if !s.stop() && s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	if err == nil {
		return nil
	}
	if exit, ok := errors.AsType[*ssh.ExitError](err); ok {
		return &ExitError{Command: s.name, Status: exit.ExitStatus(), Signal: exit.Signal(), Stderr: strings.TrimSpace(s.said.String())}
	}
	return s.conn.lost(err)
}

// Close ends the session, and with it the command's standard input. Others may be writing meanwhile.
func (s *Session) Close() error {
	s.stop()
	return s.session.Close()
}

// Quote makes one line for a POSIX shell that stands for exactly these words.
func Quote(argv []string) string {
	words := make([]string, len(argv))
	for i, a := range argv {
		words[i] = quoteWord(a)
	}
	return strings.Join(words, " ")
}

const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:=@+,"

func quoteWord(a string) string {
	if a != "" && strings.Trim(a, plain) == "" {
		return a
	}
	return "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
}
