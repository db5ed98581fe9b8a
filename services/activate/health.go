package activate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"cairn/services/system"
)

const (
	healthTimeout = 10 * time.Second
	healthPause   = 250 * time.Millisecond
	healthTry     = 5 * time.Second
)

// health asks all health checks of the wanted system at once, each until it is answered well or its time is over.
func (t *transaction) health(ctx context.Context) error {
	errs := make([]error, len(t.wanted.Health))
	var all sync.WaitGroup
	for i := range t.wanted.Health {
		all.Go(func() { errs[i] = t.e.check(ctx, &t.wanted.Health[i], t.started) })
	}
	all.Wait()
	return errors.Join(errs...)
}

func (e *Engine) check(ctx context.Context, h *system.Health, since time.Time) error {
	limit := healthTimeout
	if h.TimeoutSeconds > 0 {
		limit = time.Duration(h.TimeoutSeconds) * time.Second
	}
	if h.Kind == "unit" {
		limit += e.settleTime(h)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	e.opts.Progress("check " + h.Name)
	var last error
	for {
		if last = e.ask(ctx, h); last == nil {
			return nil
		}
		if err := sleep(ctx, healthPause); err != nil {
			break
		}
	}
	err := fmt.Errorf("health check %s: not well after %s: %w", h.Name, limit, last)
	if h.Unit == "" {
		return err
	}
	return e.unitError(ctx, h.Unit, err.Error(), since)
}

// ask makes one try.
func (e *Engine) ask(ctx context.Context, h *system.Health) error {
	try, cancel := context.WithTimeout(ctx, healthTry)
	defer cancel()
	switch h.Kind {
	case "unit":
		return e.askUnit(ctx, h)
	case "tcp":
		host := h.Host
		if host == "" {
			host = "127.0.0.1"
		}
		conn, err := new(net.Dialer).DialContext(try, "tcp", net.JoinHostPort(host, strconv.Itoa(h.Port)))
		if err != nil {
			return err
		}
		return conn.Close()
	case "http":
		return askHTTP(try, h.URL)
	case "command":
		_, err := e.run(try, append([]string{e.real(h.Argv[0])}, h.Argv[1:]...)...)
		return err
	}
	return fmt.Errorf("unknown kind %q", h.Kind)
}

func askHTTP(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	client := http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	res.Body.Close()
	if res.StatusCode >= 400 {
		return fmt.Errorf("get %s: %s", url, res.Status)
	}
	return nil
}

// askUnit wants the unit up, and still up, with the same process, after it had time to settle.
func (e *Engine) askUnit(ctx context.Context, h *system.Health) error {
	first, err := e.systemd.Status(ctx, h.Unit)
	if err != nil {
		return err
	}
	if err := up(first[h.Unit]); err != nil {
		return err
	}
	if err := sleep(ctx, e.settleTime(h)); err != nil {
		return err
	}
	second, err := e.systemd.Status(ctx, h.Unit)
	if err != nil {
		return err
	}
	if first[h.Unit].Restarts != second[h.Unit].Restarts {
		return fmt.Errorf("unit %s was restarted by systemd", h.Unit)
	}
	return up(second[h.Unit])
}

func (e *Engine) settleTime(h *system.Health) time.Duration {
	if h.SettleSeconds > 0 {
		return time.Duration(h.SettleSeconds) * time.Second
	}
	return e.opts.Settle
}

func up(st UnitStatus) error {
	if st.ActiveState == "active" || st.ActiveState == "reloading" || st.ActiveState == "inactive" && st.Ran && st.Result == "success" {
		return nil
	}
	return fmt.Errorf("is %s (%s), result %s", st.ActiveState, st.SubState, st.Result)
}
