// Renders a chart as `helm template` does, for machines without Helm: by Go's templates and the functions of Sprig,
// which are what Helm is made of. Usage: chart RELEASE DIRECTORY PATH=VALUE ...
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig"
)

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func required(message string, value interface{}) (interface{}, error) {
	if value == nil || value == "" {
		return nil, fmt.Errorf("%s", message)
	}
	return value, nil
}

func set(values map[string]interface{}, path string, text string) {
	names := strings.Split(path, ".")
	for _, name := range names[:len(names)-1] {
		values = values[name].(map[string]interface{})
	}
	var value interface{}
	if json.Unmarshal([]byte(text), &value) != nil {
		value = text
	}
	values[names[len(names)-1]] = value
}

// The test gives values and the chart's facts as JSON, which is YAML: Go's own library reads no YAML.
func main() {
	release, directory := os.Args[1], os.Args[2]
	var data map[string]interface{}
	must(json.NewDecoder(os.Stdin).Decode(&data))
	data["Release"] = map[string]interface{}{"Name": release, "Service": "Helm"}
	for _, argument := range os.Args[3:] {
		path, value, _ := strings.Cut(argument, "=")
		set(data["Values"].(map[string]interface{}), path, value)
	}
	all := template.New("chart").Option("missingkey=zero").Funcs(sprig.TxtFuncMap())
	all.Funcs(template.FuncMap{
		"required": required,
		"toYaml": func(value interface{}) string {
			text, err := json.Marshal(value)
			must(err)
			return string(text)
		},
		"include": func(name string, data interface{}) (string, error) {
			var text bytes.Buffer
			err := all.ExecuteTemplate(&text, name, data)
			return text.String(), err
		},
	})
	files, err := filepath.Glob(filepath.Join(directory, "templates", "*"))
	must(err)
	template.Must(all.ParseFiles(files...))
	for _, file := range files {
		if strings.HasSuffix(file, ".yaml") {
			fmt.Println("---")
			must(all.ExecuteTemplate(os.Stdout, filepath.Base(file), data))
		}
	}
}
