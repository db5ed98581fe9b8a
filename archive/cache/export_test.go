package cache

import (
	"net/http"
	"time"
)

// Sign signs a request as S3 wants it.
func Sign(r *http.Request, key, secret, region string, now time.Time) {
	identity{key: key, secret: secret}.sign(r, region, "s3", now)
}
