package cache

import (
	"net/http"
	"time"
)

// SignS3 signs a request as S3 wants it.
func SignS3(r *http.Request, key, secret, region string, now time.Time) {
	identity{key: key, secret: secret}.sign(r, region, "s3", now)
}
