package coracle_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coracle-dev/coracle/internal/testutil"
)

const module = "github.com/coracle-dev/coracle"

// listedPackage is what `go list -json` says of a package.
type listedPackage struct {
	ImportPath string
	Imports    []string
	Deps       []string
	Doc        string
	Standard   bool
}

func listPackages(t *testing.T, patterns ...string) []listedPackage {
	t.Helper()
	testutil.NotInVM(t, "there is no go command")
	if _, err := exec.LookPath("go"); err != nil {
		testutil.Skip(t, "needs the go command: "+err.Error())
	}
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports,Deps,Doc,Standard"}, patterns...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var list []listedPackage
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listedPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return list
		} else if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
}

// forTests are packages that production code never imports; they may import testing.
func forTests(path string) bool {
	return slices.Contains([]string{"internal/testutil", "internal/testtool", "internal/testtool/tool", "internal/registrytest", "internal/hostile", "internal/debian", "internal/bench", "internal/vmtest", "internal/powerloss", "layerfs/layerfstest", "netdrv/netdrvtest", "coracletest"},
		strings.TrimPrefix(path, module+"/"))
}

// TestPackageGraph keeps the four packages apart, production code free of testing, and every package documented.
func TestPackageGraph(t *testing.T) {
	base := []string{"layerfs", "nsexec", "cgroup", "netdrv"}
	for _, p := range listPackages(t, "./...") {
		rel := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		if p.Doc == "" {
			t.Errorf("%s has no package documentation", p.ImportPath)
		}
		if forTests(p.ImportPath) {
			continue
		}
		for _, dep := range p.Deps {
			if dep == "testing" || strings.HasPrefix(dep, "testing/") && dep != "testing/fstest" {
				t.Errorf("%s depends on %s", p.ImportPath, dep)
			}
			if forTests(dep) {
				t.Errorf("%s depends on %s, which is for tests", p.ImportPath, dep)
			}
		}
		top, _, _ := strings.Cut(rel, "/")
		if !slices.Contains(base, top) {
			continue
		}
		for _, dep := range p.Deps {
			other, ok := strings.CutPrefix(dep, module)
			if !ok {
				continue
			}
			other, _, _ = strings.Cut(strings.TrimPrefix(other, "/"), "/")
			if other == "" || other != top && other != "internal" {
				t.Errorf("%s depends on %s: the packages below the root know neither it nor each other", p.ImportPath, dep)
			}
		}
	}
}

// TestDependencies lists the modules that each package may bring along. Each one is weight for every program that
// imports coracle: adding to a list wants a reason.
func TestDependencies(t *testing.T) {
	allowed := map[string][]string{
		"nsexec":  {"github.com/opencontainers/runtime-spec", "github.com/moby/profiles", "golang.org/x/net", "golang.org/x/sys"},
		"cgroup":  {"github.com/opencontainers/runtime-spec", "github.com/moby/sys/mountinfo", "golang.org/x/sys"},
		"layerfs": {"github.com/klauspost/compress", "github.com/opencontainers/image-spec", "github.com/opencontainers/go-digest", "golang.org/x/sys"},
		"netdrv": {"github.com/vishvananda/netlink", "github.com/vishvananda/netns", "github.com/google/nftables", "github.com/mdlayher/netlink", "github.com/mdlayher/socket",
			"golang.org/x/net", "golang.org/x/sync", "golang.org/x/sys"},
		"netdrv/dns": {"golang.org/x/net"},
		// go-containerregistry's authentication brings Docker's packages and a logger along.
		".": {"github.com/google/go-containerregistry", "github.com/docker/cli", "github.com/docker/docker-credential-helpers", "github.com/sirupsen/logrus"},
	}
	for _, dir := range []string{"nsexec", "cgroup", "layerfs", "netdrv"} {
		allowed["."] = append(allowed["."], allowed[dir]...)
	}
	for dir, modules := range allowed {
		for _, p := range listPackages(t, "./"+dir) {
			for _, dep := range p.Deps {
				first, _, _ := strings.Cut(dep, "/")
				if !strings.Contains(first, ".") || strings.HasPrefix(dep, module) {
					continue
				}
				if !slices.ContainsFunc(modules, func(m string) bool { return dep == m || strings.HasPrefix(dep, m+"/") }) {
					t.Errorf("%s depends on %s, which is on no list", p.ImportPath, dep)
				}
			}
		}
	}
}

// TestExamples: every exported type has a runnable Example, and every exported identifier is documented.
func TestExamples(t *testing.T) {
	testutil.NotInVM(t, "there is no source")
	for _, dir := range []string{".", "layerfs", "nsexec", "nsexec/seccomp", "cgroup", "netdrv", "netdrv/dns", "coracletest"} {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil || len(files) == 0 {
			testutil.Skip(t, "needs the source files")
		}
		fset, types, examples := token.NewFileSet(), map[string]bool{}, map[string]bool{}
		for _, name := range files {
			file, err := parser.ParseFile(fset, name, nil, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			isTest := strings.HasSuffix(name, "_test.go")
			for _, decl := range file.Decls {
				switch d := decl.(type) {
				case *ast.FuncDecl:
					if rest, ok := strings.CutPrefix(d.Name.Name, "Example"); ok && isTest {
						typ, _, _ := strings.Cut(rest, "_")
						examples[typ] = true
					}
					if !isTest && d.Name.IsExported() && d.Doc == nil && (d.Recv == nil || exportedReceiver(d.Recv)) {
						t.Errorf("%s: %s has no doc comment", fset.Position(d.Pos()), d.Name.Name)
					}
				case *ast.GenDecl:
					if isTest {
						continue
					}
					for _, spec := range d.Specs {
						if ts, ok := spec.(*ast.TypeSpec); ok && ts.Name.IsExported() {
							types[ts.Name.Name] = true
							if d.Doc == nil && ts.Doc == nil {
								t.Errorf("%s: %s has no doc comment", fset.Position(ts.Pos()), ts.Name.Name)
							}
						}
					}
				}
			}
		}
		for typ := range types {
			if !examples[typ] {
				t.Errorf("%s: type %s has no Example", dir, typ)
			}
		}
	}
}

func exportedReceiver(recv *ast.FieldList) bool {
	expr := recv.List[0].Type
	if star, ok := expr.(*ast.StarExpr); ok {
		expr = star.X
	}
	id, ok := expr.(*ast.Ident)
	return ok && id.IsExported()
}
