package store

import (
	"fmt"
	"strings"
)

// DrvOutput identifies an output by the hash modulo of its derivation.
//
//	sha256:<hex>!<output>
type DrvOutput struct {
	Drv    Hash
	Output string
}

// ParseDrvOutput parses the text form.
func ParseDrvOutput(s string) (DrvOutput, error) {
	hash, output, ok := strings.Cut(s, "!")
	if !ok {
		return DrvOutput{}, fmt.Errorf("derivation output %q has no '!'", clip(s))
	}
	h, err := ParseHash(hash, SHA256)
	if err != nil {
		return DrvOutput{}, fmt.Errorf("derivation output %q: %w", clip(s), err)
	}
	if err := CheckName(output); err != nil {
		return DrvOutput{}, fmt.Errorf("derivation output %q: %w", clip(s), err)
	}
	return DrvOutput{Drv: h, Output: output}, nil
}

func (o DrvOutput) String() string {
	return o.Drv.Algorithm().String() + ":" + o.Drv.Hex() + "!" + o.Output
}

// MarshalText gives the text form.
func (o DrvOutput) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// UnmarshalText parses the text form.
func (o *DrvOutput) UnmarshalText(b []byte) error {
	p, err := ParseDrvOutput(string(b))
	if err == nil {
		*o = p
	}
	return err
}

// Realisation says that an output of a derivation is a store path.
type Realisation struct {
	ID         DrvOutput
	OutPath    Path
	Signatures []string
	Dependents map[DrvOutput]Path // Nix's dependentRealisations
}
