// Sends three requests in a row with Go's HTTP client, and prints the last response.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
)

func main() {
	url, body := os.Args[1], os.Args[2]
	for i := 0; i < 3; i++ {
		response, err := http.Post(url, "application/json", strings.NewReader(body))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		text, err := io.ReadAll(response.Body)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		if i == 2 {
			os.Stdout.Write(text)
		}
	}
}
