// Queries are files; here they get the names that are known only when they are deployed.

@export()
@description('A query with the audit lines in front, for one app and one ACS resource.')
func completed(query string, appName string, acsId string) string =>
  replace(replace('${loadTextContent('../queries/audit.kql')}${query}', '{app}', appName), '{acs}', acsId)
