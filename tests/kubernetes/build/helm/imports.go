// Package lab names what the lab builds of Helm, so that go.mod gets all that it needs.
package lab

import (
	_ "helm.sh/helm/v3/pkg/action"
	_ "helm.sh/helm/v3/pkg/cli"
	_ "helm.sh/helm/v3/pkg/cmd"
	_ "helm.sh/helm/v3/pkg/lint"
	_ "helm.sh/helm/v3/pkg/plugin/installer"
	_ "helm.sh/helm/v3/pkg/repo/repotest"
)
