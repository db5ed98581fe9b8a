package config

import (
	"fmt"
	"path/filepath"
	"strings"

	"go.starlark.net/starlark"

	"cairn/derivation/eval"
	"cairn/services/library"
	"cairn/services/system"
)

// system folds a system, once.
func (e *evaluated) system(r *eval.Record) (*System, error) {
	if s := e.systems[r]; s != nil {
		return s, nil
	}
	base, err := e.eval.Module(e.ctx, "@cairn//"+library.Base)
	if err != nil {
		return nil, err
	}
	var s *System
	err = e.eval.Do(e.ctx, func(t *starlark.Thread) error {
		s, err = e.fold(t, r, base)
		return err
	})
	if err != nil {
		return nil, err
	}
	e.systems[r] = s
	return s, nil
}

func (e *evaluated) fold(t *starlark.Thread, r *eval.Record, base *eval.Module) (*System, error) {
	list, err := serviceList(r.Field("services"))
	if err != nil {
		return nil, err
	}
	essential, err := essentialServices(t, r, base)
	if err != nil {
		return nil, err
	}
	root, ok := base.Globals["system_root"].(*serviceType)
	if !ok {
		return nil, fmt.Errorf("%s has no service type system_root", base.Name)
	}
	folded, err := fold(append(essential, list...), root)
	if err != nil {
		return nil, err
	}
	s := &System{Spec: new(system.Spec)}
	if err := eval.Decode(folded, s.Spec); err != nil {
		return nil, fmt.Errorf("system %s: %w", r.Field("host_name"), err)
	}
	s.Name = s.Spec.HostName
	s.Spec.HostPaths = e.hostPaths(s.Spec)
	return s, e.derive(s, r)
}

func essentialServices(t *starlark.Thread, r *eval.Record, base *eval.Module) ([]*service, error) {
	f, ok := base.Globals["essential_services"].(starlark.Callable)
	if !ok {
		return nil, fmt.Errorf("%s has no function essential_services", base.Name)
	}
	var v starlark.Value
	err := eval.OnBehalf(t, r.Place(), func() (err error) {
		v, err = starlark.Call(t, f, starlark.Tuple{r}, nil)
		return err
	})
	if err != nil {
		return nil, err
	}
	return serviceList(v)
}

// derive makes the system's derivation.
func (e *evaluated) derive(s *System, r *eval.Record) error {
	cairn, err := e.cairn()
	if err != nil {
		return err
	}
	tree, err := s.Spec.Tree(cairn)
	if err != nil {
		return fmt.Errorf("%s: system %s: %w", r.Place(), s.Name, err)
	}
	o, err := e.eval.Tree(s.Name+"-system", tree)
	if err != nil {
		return fmt.Errorf("%s: system %s: %w", r.Place(), s.Name, err)
	}
	s.Drv, s.Output, err = o.Output()
	return err
}

// cairn returns the store path of the program.
func (e *evaluated) cairn() (string, error) {
	p, err := e.opts.cairnProgram()
	if err != nil {
		return "", err
	}
	o, err := e.eval.Program("cairn", p)
	if err != nil {
		return "", err
	}
	return o.Path()
}

// hostPaths lists the programs of the host that a spec mentions, in its own texts and in those it refers to.
func (e *evaluated) hostPaths(s *system.Spec) []string {
	var texts []string
	for _, u := range s.Units {
		texts = append(texts, u.Text)
	}
	for _, c := range s.Checks {
		texts = append(texts, strings.Join(c.Argv, " "))
	}
	for _, h := range s.Health {
		texts = append(texts, strings.Join(h.Argv, " "))
	}
	for _, f := range s.Etc {
		texts = append(texts, f.Source)
	}
	for _, u := range s.Users {
		texts = append(texts, u.Shell)
	}
	return e.eval.HostPaths(append(texts, e.eval.Texts(texts...)...)...)
}

func (e *evaluated) Machines() ([]Machine, error) {
	records, err := e.machineRecords()
	if err != nil {
		return nil, err
	}
	machines := make([]Machine, len(records))
	names := map[string]*eval.Record{}
	for i, r := range records {
		name := string(r.Field("name").(starlark.String))
		if first := names[name]; first != nil {
			return nil, fmt.Errorf("%s: machine %s is declared twice, first at %s", r.Place(), name, first.Place())
		}
		names[name] = r
		if machines[i], err = e.machine(name, r); err != nil {
			return nil, err
		}
	}
	return machines, nil
}

// machineRecords finds the machines of the file.
func (e *evaluated) machineRecords() ([]*eval.Record, error) {
	v, ok := e.main.Globals["machines"]
	if !ok {
		return e.exportedMachines()
	}
	l, ok := v.(starlark.Indexable)
	if !ok {
		return nil, fmt.Errorf("machines is %s, want a list of machines", v.Type())
	}
	var out []*eval.Record
	for i := range l.Len() {
		if !e.isA(l.Index(i), "machine") {
			return nil, fmt.Errorf("machines[%d] is %s, want a machine", i, l.Index(i).Type())
		}
		out = append(out, l.Index(i).(*eval.Record))
	}
	return out, nil
}

func (e *evaluated) exportedMachines() ([]*eval.Record, error) {
	var out []*eval.Record
	for _, n := range e.main.Names() {
		if v := e.main.Globals[n]; e.isA(v, "machine") {
			out = append(out, v.(*eval.Record))
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s has no machines; assign a list of them: machines = [machine(…)]", e.main.Name)
	}
	return out, nil
}

func (e *evaluated) machine(name string, r *eval.Record) (Machine, error) {
	s, err := e.system(r.Field("system").(*eval.Record))
	if err != nil {
		return Machine{}, fmt.Errorf("machine %s: %w", name, err)
	}
	m := Machine{Name: name, System: s, Environment: Environment{Type: r.Field("environment").Type()}}
	if err := eval.Decode(r.Field("environment"), &m.Environment); err != nil {
		return Machine{}, fmt.Errorf("machine %s: %w", name, err)
	}
	m.Environment.Identity = e.absolute(m.Environment.Identity)
	m.Environment.SSHConfig = e.absolute(m.Environment.SSHConfig)
	return m, nil
}

// absolute makes a file name of the configuration one that does not depend on the current folder.
// A leading ~/ is left to ssh.
func (e *evaluated) absolute(p string) string {
	if p == "" || filepath.IsAbs(p) || strings.HasPrefix(p, "~/") {
		return p
	}
	return filepath.Join(e.dir, p)
}
